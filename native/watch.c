/* What core/watch.py does in Python, without the objects it makes on the way: after a training step nothing
 * of them is in the caches any more, and an update of a small model took half its time to look.
 *
 * Nothing is kept here: what is compared lies in the caller's lists, where Python's garbage collector
 * sees it. */
#include "watch.h"

/* contents: (stores, sizes, keys, values, anything); keys and values of all stores, one after the other. */
PyObject *polyak_holds(PyObject *self, PyObject *contents) {
    (void)self;
    PyObject *stores, *sizes, *keys, *values, *anything;
    if (!PyArg_ParseTuple(contents, "O!O!O!O!O", &PyList_Type, &stores, &PyList_Type, &sizes, &PyList_Type, &keys,
                          &PyList_Type, &values, &anything))
        return NULL;
    Py_ssize_t seen = 0, count = PyList_Size(stores), total = PyList_Size(keys);
    if (PyList_Size(sizes) != count || PyList_Size(values) != total)
        return PyErr_Format(PyExc_ValueError, "holds: lists of different lengths");
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *store = PyList_GetItem(stores, i), *key, *value;
        Py_ssize_t position = 0, size = PyDict_Size(store);
        if (size < 0) return NULL;
        if (size != PyLong_AsSsize_t(PyList_GetItem(sizes, i))) Py_RETURN_FALSE;
        for (; PyDict_Next(store, &position, &key, &value); seen++) {
            if (seen >= total || key != PyList_GetItem(keys, seen)) Py_RETURN_FALSE;
            PyObject *held = PyList_GetItem(values, seen);
            if (value != held && held != anything) Py_RETURN_FALSE;
        }
    }
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_TRUE;
}

static int reads_the_same(PyObject *read, PyObject *object, PyObject *before) {
    PyObject *now = PyObject_CallFunctionObjArgs(read, object, NULL);
    if (!now) return -1;
    int same = now == before ? 1 : PyObject_RichCompareBool(now, before, Py_EQ);
    Py_DECREF(now);
    return same;
}

/* agree(readings) or agree(readings, first, last); readings: (reads, objects, values), a list for each read. */
PyObject *polyak_agree(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    PyObject *reads, *objects, *values;
    if (n != 1 && n != 3) return PyErr_Format(PyExc_TypeError, "agree(readings[, first, last])");
    if (!PyArg_ParseTuple(args[0], "O!O!O!", &PyTuple_Type, &reads, &PyList_Type, &objects, &PyTuple_Type,
                          &values))
        return NULL;
    Py_ssize_t count = PyList_Size(objects), kinds = PyTuple_Size(reads);
    Py_ssize_t first = n == 1 ? 0 : PyLong_AsSsize_t(args[1]), last = n == 1 ? count : PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred()) return NULL;
    if (PyTuple_Size(values) != kinds || first < 0)
        return PyErr_Format(PyExc_ValueError, "agree: %zd reads, from %zd", kinds, first);
    for (Py_ssize_t i = first; i < last && i < count; i++)
        for (Py_ssize_t k = 0; k < kinds; k++) {
            PyObject *object = PyList_GetItem(objects, i), *before = PyList_GetItem(PyTuple_GetItem(values, k), i);
            int same = object && before ? reads_the_same(PyTuple_GetItem(reads, k), object, before) : -1;
            if (same < 0) return NULL;
            if (!same) Py_RETURN_FALSE;
        }
    Py_RETURN_TRUE;
}
