/* Checks the arguments of a kernel and takes the addresses of its arrays, for mpidl.backend.binder:
   in Python that takes longer than small kernels run.

   A program begins with the position of the record of sizes (255: there is none). Then it has, for
   each argument: the number of the dtype in NumPy (PLAIN: not an array, passed on as it is; RECORD:
   the record of sizes), flags, the number of factors of the size, and the factors: below FIELD the
   position of an argument, from FIELD on a field of the record, from NUMBER on a number. The one
   factor of a record is its number of fields. */
#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_1_19_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>

enum { OPTIONAL = 1, SIZED = 2, STRIDED = 4, FIELD = 64, NUMBER = 128, RECORD = 253, PLAIN = 255 };

typedef struct {
    PyObject *args;
    Py_ssize_t length;
    const long long *fields; /* of the record of sizes, or NULL */
    int field_count;
} call_info;

/* The number of elements that the factors say; -1 if a factor is no integer. */
static npy_intp size_of(const unsigned char *factors, int count, const call_info *call) {
    npy_intp size = 1;
    for (int i = 0; i < count; i++) {
        int code = factors[i];
        if (code >= NUMBER) {
            size *= code - NUMBER;
        } else if (code >= FIELD) {
            if (call->fields == NULL || code - FIELD >= call->field_count) return -1;
            size *= (npy_intp)call->fields[code - FIELD];
        } else {
            if (code >= call->length) return -1;
            Py_ssize_t factor = PyNumber_AsSsize_t(PyTuple_GET_ITEM(call->args, code), NULL);
            if (factor == -1 && PyErr_Occurred()) {
                PyErr_Clear();
                return -1;
            }
            size *= factor;
        }
    }
    return size;
}

/* Whether an argument is a record of `fields` numbers of 64 bits. */
static int is_record(PyObject *arg, int fields) {
    if (!PyArray_Check(arg)) return 0;
    PyArrayObject *array = (PyArrayObject *)arg;
    return PyArray_TYPE(array) == NPY_VOID && PyArray_NDIM(array) == 0 &&
           PyArray_ISALIGNED(array) &&
           PyArray_ITEMSIZE(array) == fields * (npy_intp)sizeof(long long);
}

static int fits(PyObject *arg, const unsigned char *entry, const call_info *call) {
    if (entry[0] == RECORD) return is_record(arg, entry[3]);
    if (!PyArray_Check(arg)) return 0;
    PyArrayObject *array = (PyArrayObject *)arg;
    int type = PyArray_TYPE(array);
    if (type == NPY_LONGLONG && sizeof(long) == 8) type = NPY_LONG;
    if (type != entry[0] || !PyArray_ISNOTSWAPPED(array) || !PyArray_ISALIGNED(array)) return 0;
    if (!(entry[1] & STRIDED) && !PyArray_IS_C_CONTIGUOUS(array)) return 0;
    return !(entry[1] & SIZED) || PyArray_SIZE(array) == size_of(entry + 3, entry[2], call);
}

/* pointers(program, args): args with addresses for arrays; None if something does not fit. */
static PyObject *pointers(PyObject *self, PyObject *const *given, Py_ssize_t count) {
    if (count != 2 || !PyBytes_Check(given[0]) || !PyTuple_Check(given[1])) {
        PyErr_SetString(PyExc_TypeError, "pointers(program, args)");
        return NULL;
    }
    const unsigned char *entry = (const unsigned char *)PyBytes_AS_STRING(given[0]);
    const unsigned char *end = entry + PyBytes_GET_SIZE(given[0]);
    int record = *entry++;
    Py_ssize_t length = PyTuple_GET_SIZE(given[1]), index = 0;
    call_info call = {given[1], length, NULL, 0};
    if (record < length) {
        PyObject *arg = PyTuple_GET_ITEM(given[1], record);
        if (PyArray_Check(arg) && PyArray_NDIM((PyArrayObject *)arg) == 0) {
            call.fields = PyArray_DATA((PyArrayObject *)arg);
            call.field_count =
                (int)(PyArray_ITEMSIZE((PyArrayObject *)arg) / (npy_intp)sizeof(long long));
        }
    }
    PyObject *bound = PyTuple_New(length);
    if (bound == NULL) return NULL;
    for (; index < length && entry < end; index++, entry += 3 + entry[2]) {
        PyObject *arg = PyTuple_GET_ITEM(given[1], index), *value = arg;
        if (entry[0] == PLAIN || (arg == Py_None && (entry[1] & OPTIONAL))) {
            Py_INCREF(value);
        } else if (fits(arg, entry, &call)) {
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
    {"pointers", (PyCFunction)(void (*)(void))pointers, METH_FASTCALL,
     "pointers(program, args) -> args with addresses, or None"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "bind", NULL, -1, methods};

PyMODINIT_FUNC PyInit_bind(void) {
    import_array();
    return PyModule_Create(&module);
}
