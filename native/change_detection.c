/* The same as polyak/_core/change_detection.py without creating Python objects: after a training step none of
 * them would be in the caches any more, and the checks took half the time of a small model's update.
 *
 * Nothing is stored here: what is compared lies in the caller's lists, where Python's garbage collector
 * sees it. */
#include "change_detection.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* An update comes right after a training step, which has evicted all of these objects from the caches. Each is
 * prefetched this many places ahead, so that several memory accesses overlap. */
enum { AHEAD = 8 };

static PyObject *at(PyObject *list, Py_ssize_t i, Py_ssize_t count) {
    if (i + AHEAD < count) __builtin_prefetch(PyList_GetItem(list, i + AHEAD));
    return PyList_GetItem(list, i);
}

/* Whether a snapshot is a tuple with a list at each of the places from `first` to `last`. */
static bool has_lists(PyObject *snapshot, Py_ssize_t size, Py_ssize_t first, Py_ssize_t last) {
    if (!PyTuple_Check(snapshot) || PyTuple_Size(snapshot) != size) return false;
    for (; first < last; first++)
        if (!PyList_Check(PyTuple_GetItem(snapshot, first))) return false;
    return true;
}

static PyObject *answer(int same) { return same < 0 ? NULL : PyBool_FromLong(same); }

/* Each of the three returns 1, 0, or -1 with an exception. */

/* snapshot: (stores, sizes, keys, values, anything); keys and values of all stores, one after the other. */
static int dicts_same(PyObject *snapshot) {
    if (!has_lists(snapshot, 5, 0, 4)) return PyErr_Format(PyExc_TypeError, "dicts: no snapshot"), -1;
    PyObject *stores = PyTuple_GetItem(snapshot, 0), *sizes = PyTuple_GetItem(snapshot, 1);
    PyObject *keys = PyTuple_GetItem(snapshot, 2), *values = PyTuple_GetItem(snapshot, 3);
    PyObject *anything = PyTuple_GetItem(snapshot, 4);
    Py_ssize_t seen = 0, count = PyList_Size(stores), total = PyList_Size(keys);
    if (PyList_Size(sizes) != count || PyList_Size(values) != total)
        return PyErr_Format(PyExc_ValueError, "dicts: lists of different lengths"), -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *store = at(stores, i, count), *key, *value;
        Py_ssize_t position = 0, size = PyDict_Size(store);
        if (size < 0) return -1;
        if (size != PyLong_AsSsize_t(PyList_GetItem(sizes, i))) return 0;
        if (!size) continue; /* most of them: its table is left alone */
        for (; PyDict_Next(store, &position, &key, &value); seen++) {
            if (seen >= total || key != PyList_GetItem(keys, seen)) return 0;
            PyObject *held = PyList_GetItem(values, seen);
            if (value != held && held != anything) return 0;
        }
    }
    return PyErr_Occurred() ? -1 : 1;
}

PyObject *polyak_dicts_unchanged(PyObject *self, PyObject *snapshot) {
    (void)self;
    return answer(dicts_same(snapshot));
}

static int reads_the_same(PyObject *read, PyObject *object, PyObject *before) {
    PyObject *now = PyObject_CallFunctionObjArgs(read, object, NULL);
    if (!now) return -1;
    int same = now == before ? 1 : PyObject_RichCompareBool(now, before, Py_EQ);
    Py_DECREF(now);
    return same;
}

/* snapshot: (reads, objects, values), a list for each read; of the objects [first, last) are looked at. */
static int attributes_same(PyObject *snapshot, Py_ssize_t first, Py_ssize_t last) {
    PyObject *reads, *objects, *values;
    if (!has_lists(snapshot, 3, 1, 2) || !PyTuple_Check(reads = PyTuple_GetItem(snapshot, 0)) ||
        !PyTuple_Check(values = PyTuple_GetItem(snapshot, 2)))
        return PyErr_Format(PyExc_TypeError, "attributes: no snapshot"), -1;
    objects = PyTuple_GetItem(snapshot, 1);
    Py_ssize_t count = PyList_Size(objects), kinds = PyTuple_Size(reads);
    if (PyTuple_Size(values) != kinds || first < 0)
        return PyErr_Format(PyExc_ValueError, "attributes: %zd reads, from %zd", kinds, first), -1;
    for (Py_ssize_t i = first; i < last && i < count; i++)
        for (Py_ssize_t k = 0; k < kinds; k++) {
            PyObject *object = at(objects, i, count), *before = PyList_GetItem(PyTuple_GetItem(values, k), i);
            int same = object && before ? reads_the_same(PyTuple_GetItem(reads, k), object, before) : -1;
            if (same < 1) return same;
        }
    return 1;
}

PyObject *polyak_attributes_unchanged(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    if (n != 1 && n != 3) return PyErr_Format(PyExc_TypeError, "attributes_unchanged(snapshot[, first, last])");
    Py_ssize_t first = n == 1 ? 0 : PyLong_AsSsize_t(args[1]), last = n == 1 ? PY_SSIZE_T_MAX : PyLong_AsSsize_t(args[2]);
    return PyErr_Occurred() ? NULL : answer(attributes_same(args[0], first, last));
}

/* -- Tensor addresses -------------------------------------------------------------------------------------- */

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

/* The interface is used if its address of each tensor equals the tensor's own. */
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

static int layouts_same(PyObject *capsule, PyObject *tensors, PyObject *layouts) {
    if (!PyList_Check(tensors) || !PyBytes_Check(layouts))
        return PyErr_Format(PyExc_TypeError, "layouts: not a list and bytes"), -1;
    const Exchange *exchange = exchange_of(capsule);
    if (!exchange) return -1;
    const char *then = PyBytes_AsString(layouts), *end = then + PyBytes_Size(layouts);
    for (Py_ssize_t i = 0, count = PyList_Size(tensors); i < count; i++) {
        Layout layout = {0};
        Part parts[PARTS];
        if (exchange->describe(at(tensors, i, count), &layout)) {
            PyErr_Clear(); /* a tensor without address has moved */
            return 0;
        }
        parts_of(&layout, parts);
        for (int k = 0; k < PARTS; then += parts[k++].size)
            if ((size_t)(end - then) < parts[k].size || (parts[k].size && memcmp(then, parts[k].start, parts[k].size)))
                return 0;
    }
    return then == end;
}

PyObject *polyak_unmoved(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    if (n != 3) return PyErr_Format(PyExc_TypeError, "unmoved(exchange, tensors, layouts)");
    return answer(layouts_same(args[0], args[1], args[2]));
}

PyObject *polyak_unchanged(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    if (n != 5) return PyErr_Format(PyExc_TypeError, "unchanged(dicts, attributes, exchange, tensors, layouts)");
    int same = dicts_same(args[0]);
    if (same == 1) same = attributes_same(args[1], 0, PY_SSIZE_T_MAX);
    if (same == 1) same = layouts_same(args[2], args[3], args[4]);
    return answer(same);
}
