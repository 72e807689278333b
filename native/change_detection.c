/* What polyak/_core/change_detection.py does in Python, without creating objects on the way: after a training
 * step none of them would be in the caches any more, and an update of a small model took half its time to
 * check.
 *
 * Nothing is stored here: what is compared lies in the caller's lists, where Python's garbage collector
 * sees it. */
#include "change_detection.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* snapshot: (stores, sizes, keys, values, anything); keys and values of all stores, one after the other. */
PyObject *polyak_dicts_unchanged(PyObject *self, PyObject *snapshot) {
    (void)self;
    PyObject *stores, *sizes, *keys, *values, *anything;
    if (!PyArg_ParseTuple(snapshot, "O!O!O!O!O", &PyList_Type, &stores, &PyList_Type, &sizes, &PyList_Type, &keys,
                          &PyList_Type, &values, &anything))
        return NULL;
    Py_ssize_t seen = 0, count = PyList_Size(stores), total = PyList_Size(keys);
    if (PyList_Size(sizes) != count || PyList_Size(values) != total)
        return PyErr_Format(PyExc_ValueError, "dicts_unchanged: lists of different lengths");
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

/* attributes_unchanged(snapshot) or attributes_unchanged(snapshot, first, last); snapshot: (reads, objects,
 * values), a list for each read. */
PyObject *polyak_attributes_unchanged(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    PyObject *reads, *objects, *values;
    if (n != 1 && n != 3) return PyErr_Format(PyExc_TypeError, "attributes_unchanged(snapshot[, first, last])");
    if (!PyArg_ParseTuple(args[0], "O!O!O!", &PyTuple_Type, &reads, &PyList_Type, &objects, &PyTuple_Type,
                          &values))
        return NULL;
    Py_ssize_t count = PyList_Size(objects), kinds = PyTuple_Size(reads);
    Py_ssize_t first = n == 1 ? 0 : PyLong_AsSsize_t(args[1]), last = n == 1 ? count : PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred()) return NULL;
    if (PyTuple_Size(values) != kinds || first < 0)
        return PyErr_Format(PyExc_ValueError, "attributes_unchanged: %zd reads, from %zd", kinds, first);
    for (Py_ssize_t i = first; i < last && i < count; i++)
        for (Py_ssize_t k = 0; k < kinds; k++) {
            PyObject *object = PyList_GetItem(objects, i), *before = PyList_GetItem(PyTuple_GetItem(values, k), i);
            int same = object && before ? reads_the_same(PyTuple_GetItem(reads, k), object, before) : -1;
            if (same < 0) return NULL;
            if (!same) Py_RETURN_FALSE;
        }
    Py_RETURN_TRUE;
}

/* -- Where tensors lie ------------------------------------------------------------------------------------- */

/* DLPack's C interface, version 1, as far as it describes a tensor without taking hold of it: all the form
 * and the place of a tensor at the price of reading its address in Python. */
typedef struct {
    void *data;
    int32_t device, index, dimensions;
    uint32_t dtype;
    int64_t *shape, *strides;
    uint64_t offset;
} Layout;

typedef struct {
    uint32_t major, minor;
    void *previous, *allocate, *from_object, *to_object;
    int (*describe)(void *object, Layout *out);
} Exchange;

enum { HEAD = offsetof(Layout, shape) };

static const Exchange *exchange_of(PyObject *capsule) {
    const Exchange *exchange = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    if (!exchange || exchange->major == 1) return exchange;
    PyErr_Format(PyExc_ValueError, "DLPack %u.%u: only version 1 is known", exchange->major, exchange->minor);
    return NULL;
}

/* What is noted of a layout: all before its pointers, then the shape, then the strides if it has any. */
typedef struct {
    const void *start;
    size_t size;
} Part;

enum { PARTS = 3 };

static void parts_of(const Layout *layout, Part *parts) {
    size_t extents = (size_t)layout->dimensions * sizeof(int64_t);
    parts[0] = (Part){layout, HEAD};
    parts[1] = (Part){layout->shape, extents};
    parts[2] = (Part){layout->strides, layout->strides ? extents : 0};
}

typedef struct {
    char *bytes;
    size_t used, room;
} Buffer;

static int append(Buffer *buffer, Part part) {
    if (buffer->used + part.size > buffer->room) {
        size_t room = 2 * buffer->room + part.size;
        char *more = realloc(buffer->bytes, room);
        if (!more) return PyErr_NoMemory(), -1;
        buffer->bytes = more, buffer->room = room;
    }
    if (part.size) memcpy(buffer->bytes + buffer->used, part.start, part.size);
    buffer->used += part.size;
    return 0;
}

/* The interface is believed if it says of each tensor the address that the tensor itself says. */
static int note(const Exchange *exchange, PyObject *tensor, PyObject *address, Buffer *buffer) {
    Layout layout = {0};
    Part parts[PARTS];
    if (!address || exchange->describe(tensor, &layout)) return -1;
    void *said = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred()) return -1;
    if ((char *)layout.data + layout.offset != said || layout.dimensions < 0)
        return PyErr_Format(PyExc_ValueError, "layouts: DLPack says another address"), -1;
    parts_of(&layout, parts);
    for (int i = 0; i < PARTS; i++)
        if (append(buffer, parts[i])) return -1;
    return 0;
}

/* layouts(exchange, tensors, addresses): bytes that `unmoved` compares. */
PyObject *polyak_layouts(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *capsule, *tensors, *addresses, *out = NULL;
    if (!PyArg_ParseTuple(args, "OO!O!", &capsule, &PyList_Type, &tensors, &PyList_Type, &addresses)) return NULL;
    const Exchange *exchange = exchange_of(capsule);
    if (!exchange) return NULL;
    Buffer buffer = {0};
    Py_ssize_t i = 0, count = PyList_Size(tensors);
    while (i < count && !note(exchange, PyList_GetItem(tensors, i), PyList_GetItem(addresses, i), &buffer)) i++;
    if (i == count) out = PyBytes_FromStringAndSize(buffer.bytes, (Py_ssize_t)buffer.used);
    free(buffer.bytes);
    return out;
}

PyObject *polyak_unmoved(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    if (n != 3 || !PyList_Check(args[1]) || !PyBytes_Check(args[2]))
        return PyErr_Format(PyExc_TypeError, "unmoved(exchange, tensors, layouts)");
    const Exchange *exchange = exchange_of(args[0]);
    if (!exchange) return NULL;
    const char *then = PyBytes_AsString(args[2]), *end = then + PyBytes_Size(args[2]);
    for (Py_ssize_t i = 0, count = PyList_Size(args[1]); i < count; i++) {
        Layout layout = {0};
        Part parts[PARTS];
        if (exchange->describe(PyList_GetItem(args[1], i), &layout)) {
            PyErr_Clear(); /* what has no address any more has moved */
            Py_RETURN_FALSE;
        }
        parts_of(&layout, parts);
        for (int k = 0; k < PARTS; then += parts[k++].size)
            if ((size_t)(end - then) < parts[k].size || (parts[k].size && memcmp(then, parts[k].start, parts[k].size)))
                Py_RETURN_FALSE;
    }
    if (then != end) Py_RETURN_FALSE;
    Py_RETURN_TRUE;
}
