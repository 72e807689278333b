/* Whether what a plan was made from is still there. */
#ifndef POLYAK_CHANGE_DETECTION_H
#define POLYAK_CHANGE_DETECTION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *polyak_dicts_unchanged(PyObject *self, PyObject *snapshot);
PyObject *polyak_attributes_unchanged(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *polyak_layouts(PyObject *self, PyObject *args);
PyObject *polyak_unmoved(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *polyak_unchanged(PyObject *self, PyObject *const *args, Py_ssize_t n);

#endif
