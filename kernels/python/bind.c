/* Checks the arguments of a kernel and takes the addresses of its arrays, for mpidl.backend.binder: in Python that takes longer than
   small kernels run.

   A program has, for each argument: the number of the dtype in NumPy (255: not an array, passed on as it is), flags, the number of
   factors of the size, and the factors: indices of arguments, or from 128 on numbers. */
#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_1_19_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>

enum { OPTIONAL = 1, SIZED = 2, STRIDED = 4, NUMBER = 128, PLAIN = 255 };

/* The number of elements that the factors say; -1 if a factor is no integer. */
static npy_intp size_of(const unsigned char *factors, int count, PyObject *args, Py_ssize_t length) {
    npy_intp size = 1;
    for (int i = 0; i < count; i++) {
        if (factors[i] >= NUMBER) {
            size *= factors[i] - NUMBER;
            continue;
        }
        if (factors[i] >= length) return -1;
        Py_ssize_t factor = PyNumber_AsSsize_t(PyTuple_GET_ITEM(args, factors[i]), NULL);
        if (factor == -1 && PyErr_Occurred()) {
            PyErr_Clear();
            return -1;
        }
        size *= factor;
    }
    return size;
}

static int fits(PyObject *arg, const unsigned char *entry, PyObject *args, Py_ssize_t length) {
    if (!PyArray_Check(arg)) return 0;
    PyArrayObject *array = (PyArrayObject *)arg;
    int type = PyArray_TYPE(array);
    if (type == NPY_LONGLONG && sizeof(long) == 8) type = NPY_LONG;
    if (type != entry[0] || !PyArray_ISNOTSWAPPED(array) || !PyArray_ISALIGNED(array)) return 0;
    if (!(entry[1] & STRIDED) && !PyArray_IS_C_CONTIGUOUS(array)) return 0;
    return !(entry[1] & SIZED) || PyArray_SIZE(array) == size_of(entry + 3, entry[2], args, length);
}

/* pointers(program, args): args with addresses for arrays; None if something does not fit. */
static PyObject *pointers(PyObject *self, PyObject *const *given, Py_ssize_t count) {
    if (count != 2 || !PyBytes_Check(given[0]) || !PyTuple_Check(given[1])) {
        PyErr_SetString(PyExc_TypeError, "pointers(program, args)");
        return NULL;
    }
    const unsigned char *entry = (const unsigned char *)PyBytes_AS_STRING(given[0]);
    const unsigned char *end = entry + PyBytes_GET_SIZE(given[0]);
    PyObject *args = given[1];
    Py_ssize_t length = PyTuple_GET_SIZE(args), index = 0;
    PyObject *bound = PyTuple_New(length);
    if (bound == NULL) return NULL;
    for (; index < length && entry < end; index++, entry += 3 + entry[2]) {
        PyObject *arg = PyTuple_GET_ITEM(args, index), *value = arg;
        if (entry[0] == PLAIN || (arg == Py_None && (entry[1] & OPTIONAL))) {
            Py_INCREF(value);
        } else if (fits(arg, entry, args, length)) {
            value = PyLong_FromVoidPtr(PyArray_DATA((PyArrayObject *)arg));
            if (value == NULL) break;
        } else {
            break;
        }
        PyTuple_SET_ITEM(bound, index, value);
    }
    if (index == length && entry == end) return bound;
    Py_DECREF(bound);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"pointers", (PyCFunction)(void (*)(void))pointers, METH_FASTCALL, "pointers(program, args) -> args with addresses, or None"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "bind", NULL, -1, methods};

PyMODINIT_FUNC PyInit_bind(void) {
    import_array();
    return PyModule_Create(&module);
}
