"""A package, so that it comes before one of this name that a library installs (Ultralytics 8.4.0 does)."""
