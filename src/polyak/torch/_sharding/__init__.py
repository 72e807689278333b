"""Averages of which each process holds a part: layouts, swapping, files, agreement.

Everything outside this package asks ``kinds`` first, because importing DTensor takes half a second.
"""
