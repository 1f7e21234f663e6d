/* Authenticated encryption of messages by OpenSSL's EVP, outside of Python's lock, for
   mpidl.security.aead. A key holds one context that OpenSSL has prepared; a lock of its own lets
   several threads use it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

enum { KEY = 32, NONCE = 12, TAG = 16 };

typedef struct {
    PyObject_HEAD EVP_CIPHER_CTX *context;
    PyThread_type_lock lock;
    int sealing;
} key_object;

static void key_dealloc(PyObject *self) {
    key_object *key = (key_object *)self;
    EVP_CIPHER_CTX_free(key->context); /* clears the key */
    if (key->lock != NULL) PyThread_free_lock(key->lock);
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *key_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    const char *suite;
    Py_buffer secret;
    int sealing;
    if (!PyArg_ParseTuple(args, "sy*p", &suite, &secret, &sealing)) return NULL;
    const EVP_CIPHER *cipher = strcmp(suite, "aes-256-gcm") == 0         ? EVP_aes_256_gcm()
                               : strcmp(suite, "chacha20-poly1305") == 0 ? EVP_chacha20_poly1305()
                                                                         : NULL;
    key_object *key = NULL;
    if (cipher == NULL || secret.len != KEY) {
        PyErr_SetString(PyExc_ValueError, "Key(suite, 32 bytes, sealing)");
    } else if ((key = (key_object *)type->tp_alloc(type, 0)) != NULL) {
        key->sealing = sealing;
        key->lock = PyThread_allocate_lock();
        key->context = EVP_CIPHER_CTX_new();
        if (key->lock == NULL || key->context == NULL ||
            EVP_CipherInit_ex(key->context, cipher, NULL, secret.buf, NULL, sealing) != 1) {
            Py_CLEAR(key);
            PyErr_SetString(PyExc_RuntimeError, "OpenSSL cannot prepare this key");
        }
    }
    PyBuffer_Release(&secret);
    return (PyObject *)key;
}

/* Whether all went well; what came out of a forgery is wiped. */
static int run(key_object *key, const Py_buffer *nonce, const Py_buffer *aad, const Py_buffer *in,
               Py_buffer *out) {
    EVP_CIPHER_CTX *context = key->context;
    Py_ssize_t length = key->sealing ? in->len : in->len - TAG;
    unsigned char *target = out->buf, *tag = NULL;
    int count = 0, fine = EVP_CipherInit_ex(context, NULL, NULL, NULL, nonce->buf, -1) == 1;
    if (!key->sealing) {
        tag = (unsigned char *)in->buf + length;
        fine = fine && EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, TAG, tag) == 1;
    }
    fine = fine && EVP_CipherUpdate(context, NULL, &count, aad->buf, (int)aad->len) == 1;
    if (length > 0)
        fine = fine && EVP_CipherUpdate(context, target, &count, in->buf, (int)length) == 1;
    unsigned char rest[EVP_MAX_BLOCK_LENGTH];
    fine = fine && EVP_CipherFinal_ex(context, rest, &count) == 1;
    if (key->sealing)
        fine = fine &&
               EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, TAG, target + length) == 1;
    else if (!fine)
        OPENSSL_cleanse(target, length);
    return fine;
}

/* run(nonce, aad, in, out) -> bool; sealed messages are TAG bytes longer. */
static PyObject *key_run(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    key_object *key = (key_object *)self;
    Py_buffer views[4];
    int held = 0, fine = -1;
    for (; count == 4 && held < 4; held++) {
        int flags = held == 3 ? PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE : PyBUF_C_CONTIGUOUS;
        if (PyObject_GetBuffer(args[held], &views[held], flags) < 0) break;
    }
    if (held == 4) {
        Py_ssize_t in = views[2].len, out = views[3].len;
        int fits = views[0].len == NONCE && views[1].len <= INT_MAX && in <= INT_MAX &&
                   (key->sealing ? out == in + TAG : in >= TAG && out == in - TAG);
        if (fits) {
            Py_BEGIN_ALLOW_THREADS PyThread_acquire_lock(key->lock, WAIT_LOCK);
            fine = run(key, &views[0], &views[1], &views[2], &views[3]);
            PyThread_release_lock(key->lock);
            Py_END_ALLOW_THREADS
        }
    }
    while (held > 0) PyBuffer_Release(&views[--held]);
    if (fine >= 0) return PyBool_FromLong(fine);
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "run(nonce, aad, in, out) of other lengths");
    return NULL;
}

static PyMethodDef methods[] = {
    {"run", (PyCFunction)(void (*)(void))key_run, METH_FASTCALL,
     "run(nonce, aad, in, out) -> whether it is genuine"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, key_new},
    {Py_tp_dealloc, key_dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {"mpidl._kernels.seal.Key", sizeof(key_object), 0, Py_TPFLAGS_DEFAULT,
                           slots};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "seal", NULL, -1, NULL};

PyMODINIT_FUNC PyInit_seal(void) {
    PyObject *made = PyModule_Create(&module);
    if (made == NULL) return NULL;
    PyObject *type = PyType_FromSpec(&spec);
    if (type == NULL || PyModule_AddObject(made, "Key", type) < 0) {
        Py_XDECREF(type);
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
