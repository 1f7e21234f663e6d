/* A direct way from Python to mpidl_shared (kernels/cpu/shared.c): a small all-reduce takes about a
   microsecond, and ctypes takes five. The kernel's address comes from the library that
   mpidl.backend.kernels has loaded, so that its level fits the processor. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

typedef int shared_kernel(void *node, void *data, int64_t n, int width, int type, int op, int what,
                          int root, uint64_t mark);

static PyObject *all_reduce(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 6) {
        PyErr_SetString(PyExc_TypeError, "all_reduce(kernel, node, buffer, type, op, mark)");
        return NULL;
    }
    shared_kernel *kernel = (shared_kernel *)PyLong_AsVoidPtr(args[0]);
    void *node = PyLong_AsVoidPtr(args[1]);
    long type = PyLong_AsLong(args[3]), op = PyLong_AsLong(args[4]);
    uint64_t mark = PyLong_AsUnsignedLongLong(args[5]);
    if (PyErr_Occurred()) return NULL;
    Py_buffer view;
    if (PyObject_GetBuffer(args[2], &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0) return NULL;
    int status, width = (int)view.itemsize;
    Py_BEGIN_ALLOW_THREADS status =
        kernel(node, view.buf, view.len / width, width, (int)type, (int)op, 0, 0, mark);
    Py_END_ALLOW_THREADS PyBuffer_Release(&view);
    return PyLong_FromLong(status);
}

static PyObject *address(PyObject *self, PyObject *buffer) {
    Py_buffer view;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE) < 0) return NULL;
    PyObject *result = PyLong_FromVoidPtr(view.buf);
    PyBuffer_Release(&view);
    return result;
}

static PyMethodDef methods[] = {
    {"all_reduce", (PyCFunction)(void (*)(void))all_reduce, METH_FASTCALL,
     "all_reduce(kernel, node, buffer, type, op, mark) -> status"},
    {"address", (PyCFunction)address, METH_O,
     "address(buffer) -> where the memory of a contiguous buffer begins"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "fast_shared", NULL, -1, methods};

PyMODINIT_FUNC PyInit_fast_shared(void) {
    return PyModule_Create(&module);
}
