/* The Python interface of the kernel: a table of tensors made once, and updates of it.
 *
 * Only the stable ABI of CPython 3.10 is used, and nothing of torch: tensors come as addresses. Whoever
 * makes a table keeps the memory alive and notices when it moves; see polyak/_kernel/native.py. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "pool.h"
#include "change_detection.h"

enum { UNIT = 16 * BLOCK, VARIANTS = 4 };

typedef struct {
    int tensor;
    int64_t first, last;
} Slice;

/* A unit is the work a thread takes at once: slices [units[i], units[i+1]), about UNIT elements: enough to
 * outweigh the cost of taking it, few enough that a model of 62,000 has work for four threads. */
typedef struct {
    Store store;
    int tracks;
    int64_t tensors, slices, units;
    Tensor *tensor;
    Slice *slice;
    int64_t *unit;
    uint64_t step;        /* of the last update */
    unsigned char *found; /* tensors with elements that cannot be stored, in the last run */
} Table;

typedef struct {
    const Table *table;
    const Update *update;
    Piece *piece;
} Job;

static Variant variants[VARIANTS];
static int variant_count;
static Piece *chosen;

static void work(void *context, int64_t unit) {
    const Job *job = context;
    for (int64_t i = job->table->unit[unit]; i < job->table->unit[unit + 1]; i++) {
        Slice slice = job->table->slice[i];
        if (job->piece(&job->table->tensor[slice.tensor], slice.first, slice.last, job->update))
            __atomic_store_n(&job->table->found[slice.tensor], 1, __ATOMIC_RELAXED);
    }
}

static void free_table(Table *table) {
    if (!table) return;
    if (table->tensor)
        for (int64_t i = 0; i < table->tensors; i++) free(table->tensor[i].averages);
    free(table->tensor), free(table->slice), free(table->unit), free(table->found), free(table);
}

static void capsule_dies(PyObject *capsule) { free_table(PyCapsule_GetPointer(capsule, "polyak.table")); }

/* The slices of all tensors, and where each unit begins. */
static int cut(Table *table) {
    int64_t slices = 0, filled = UNIT;
    for (int64_t i = 0; i < table->tensors; i++) slices += (table->tensor[i].size + UNIT - 1) / UNIT;
    table->slice = calloc((size_t)slices + 1, sizeof *table->slice);
    table->unit = calloc((size_t)slices + 1, sizeof *table->unit);
    if (!table->slice || !table->unit) return -1;
    for (int64_t i = 0; i < table->tensors; i++)
        for (int64_t first = 0, size = table->tensor[i].size; first < size; first += UNIT) {
            int64_t last = size - first < UNIT ? size : first + UNIT;
            if (filled + (last - first) > UNIT) table->unit[table->units++] = table->slices, filled = 0;
            table->slice[table->slices++] = (Slice){(int)i, first, last};
            filled += last - first;
        }
    table->unit[table->units] = table->slices;
    return 0;
}

/* Addresses from a tuple of integers; 0 stands for none. */
static int addresses(PyObject *tuple, void **out, int count) {
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != count) {
        PyErr_Format(PyExc_ValueError, "table: needs one address for each of %d tracks", count);
        return -1;
    }
    for (int k = 0; k < count; k++) out[k] = PyLong_AsVoidPtr(PyTuple_GetItem(tuple, k));
    return PyErr_Occurred() ? -1 : 0;
}

static int fill(Table *table, PyObject *rows) {
    for (int64_t i = 0; i < table->tensors; i++) {
        Tensor *tensor = &table->tensor[i];
        PyObject *live, *averages, *lows;
        long long size, offset;
        int dtype;
        unsigned int key;
        PyObject *row = PyList_GetItem(rows, (Py_ssize_t)i);
        if (!PyTuple_Check(row)) return PyErr_Format(PyExc_TypeError, "table: row %d is no tuple", (int)i), -1;
        if (!PyArg_ParseTuple(row, "OiLLIOO", &live, &dtype, &size, &offset, &key, &averages, &lows)) return -1;
        if (dtype < LIVE_F32 || dtype > LIVE_F16 || size < 0 || offset < 0) {
            PyErr_Format(PyExc_ValueError, "table: row %d has dtype %d and size %d", (int)i, dtype, (int)size);
            return -1;
        }
        tensor->averages = calloc(2 * (size_t)table->tracks, sizeof *tensor->averages);
        if (!tensor->averages) return PyErr_NoMemory(), -1;
        tensor->lows = tensor->averages + table->tracks;
        tensor->live = PyLong_AsVoidPtr(live);
        tensor->dtype = (Live)dtype, tensor->size = size, tensor->offset = offset, tensor->key = key;
        if (addresses(averages, tensor->averages, table->tracks)) return -1;
        if (addresses(lows, tensor->lows, table->tracks)) return -1;
    }
    return 0;
}

static PyObject *py_table(PyObject *self, PyObject *args) {
    (void)self;
    int store, tracks;
    PyObject *rows;
    if (!PyArg_ParseTuple(args, "iiO!", &store, &tracks, &PyList_Type, &rows)) return NULL;
    if (store < STORE_F32 || store > STORE_PAIR || tracks < 1)
        return PyErr_Format(PyExc_ValueError, "table: store %d, %d tracks", store, tracks);
    Table *table = calloc(1, sizeof *table);
    if (!table) return PyErr_NoMemory();
    table->store = (Store)store, table->tracks = tracks, table->tensors = PyList_Size(rows);
    table->tensor = calloc((size_t)table->tensors + 1, sizeof *table->tensor);
    table->found = calloc((size_t)table->tensors + 1, 1);
    PyObject *capsule = NULL;
    if (!table->tensor || !table->found)
        PyErr_NoMemory();
    else if (fill(table, rows) == 0) {
        if (cut(table))
            PyErr_NoMemory();
        else
            capsule = PyCapsule_New(table, "polyak.table", capsule_dies);
    }
    if (!capsule) free_table(table);
    return capsule;
}

static PyObject *run(Table *table, const Update *update, int threads) {
    Job job = {table, update, chosen};
    int64_t found = 0;
    memset(table->found, 0, (size_t)table->tensors);
    Py_BEGIN_ALLOW_THREADS
    polyak_run(work, &job, table->units, threads);
    for (int64_t i = 0; i < table->tensors; i++) found += table->found[i];
    Py_END_ALLOW_THREADS
    if (update->write) table->step = update->step;
    if (!found) Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)table->found, (Py_ssize_t)table->tensors);
}

static PyObject *py_update(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    if (n != 6 || !PyTuple_Check(args[1]))
        return PyErr_Format(PyExc_TypeError, "update(table, weights, seed, step, skip, threads)");
    Table *table = PyCapsule_GetPointer(args[0], "polyak.table");
    if (!table) return NULL;
    if (PyTuple_Size(args[1]) != table->tracks)
        return PyErr_Format(PyExc_ValueError, "update: needs one weight for each of %d tracks", table->tracks);
    double *weights = malloc((size_t)(table->tracks + 1) * sizeof *weights);
    if (!weights) return PyErr_NoMemory();
    for (int k = 0; k < table->tracks; k++) weights[k] = PyFloat_AsDouble(PyTuple_GetItem(args[1], k));
    Update update = {.store = table->store, .tracks = table->tracks, .weights = weights, .write = true};
    update.seed = PyLong_AsUnsignedLongLongMask(args[2]);
    update.step = PyLong_AsUnsignedLongLongMask(args[3]);
    update.skip = PyObject_IsTrue(args[4]) == 1;
    int threads = (int)PyLong_AsLong(args[5]);
    PyObject *out = PyErr_Occurred() ? NULL : run(table, &update, threads);
    free(weights);
    return out;
}

static PyObject *py_look(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *capsule;
    int threads;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &threads)) return NULL;
    Table *table = PyCapsule_GetPointer(capsule, "polyak.table");
    if (!table) return NULL;
    Update update = {.store = table->store, .tracks = table->tracks, .write = false};
    return run(table, &update, threads);
}

static PyObject *py_taken(PyObject *self, PyObject *capsule) {
    (void)self;
    const Table *table = PyCapsule_GetPointer(capsule, "polyak.table");
    return table ? PyLong_FromUnsignedLongLong(table->step) : NULL;
}

static PyObject *py_variants(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    PyObject *names = PyTuple_New(variant_count);
    for (int i = 0; names && i < variant_count; i++)
        PyTuple_SetItem(names, i, PyUnicode_FromString(variants[i].name));
    return names;
}

static PyObject *py_use(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    if (!PyArg_ParseTuple(args, "s", &name)) return NULL;
    for (int i = 0; i < variant_count; i++)
        if (strcmp(name, variants[i].name) == 0) {
            chosen = variants[i].piece;
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "use: %s is not one of variants()", name);
}

static PyMethodDef methods[] = {
    {"table", py_table, METH_VARARGS, "table(store, tracks, [(live, dtype, size, key, averages, lows)])"},
    {"update", (PyCFunction)(void (*)(void))py_update, METH_FASTCALL,
     "update(table, weights, seed, step, skip, threads): None, or a byte per tensor: 1 where theta cannot be "
     "stored"},
    {"look", py_look, METH_VARARGS, "look(table, threads): the same without writing"},
    {"taken", py_taken, METH_O, "taken(table): the step of its last update, 0 before the first"},
    {"variants", py_variants, METH_NOARGS, "Instruction sets this processor can run, best first."},
    {"use", py_use, METH_VARARGS, "use(variant): which of them to run; the best unless told."},
    {"dicts_unchanged", polyak_dicts_unchanged, METH_O,
     "dicts_unchanged(snapshot): see polyak/_core/change_detection.py"},
    {"attributes_unchanged", (PyCFunction)(void (*)(void))polyak_attributes_unchanged, METH_FASTCALL,
     "attributes_unchanged(snapshot[, first, last]): likewise"},
    {"layouts", polyak_layouts, METH_VARARGS, "layouts(exchange, tensors, addresses): likewise"},
    {"unmoved", (PyCFunction)(void (*)(void))polyak_unmoved, METH_FASTCALL,
     "unmoved(exchange, tensors, layouts): likewise"},
    {"unchanged", (PyCFunction)(void (*)(void))polyak_unchanged, METH_FASTCALL,
     "unchanged(dicts, attributes, exchange, tensors, layouts): all three at once"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods,
                                        NULL,                  NULL,      NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    polyak_begin();
    variant_count = polyak_variants(variants, VARIANTS);
    chosen = variants[0].piece;
    return PyModule_Create(&definition);
}
