/* Whether what a plan was made from is still there. */
#ifndef POLYAK_WATCH_H
#define POLYAK_WATCH_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *polyak_holds(PyObject *self, PyObject *contents);
PyObject *polyak_agree(PyObject *self, PyObject *const *args, Py_ssize_t n);
PyObject *polyak_layouts(PyObject *self, PyObject *args);
PyObject *polyak_unmoved(PyObject *self, PyObject *const *args, Py_ssize_t n);

#endif
