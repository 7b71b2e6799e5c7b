"""Doctor's tests. `broken/` and `sound/` hold installations: `installation` says what such a folder is made of."""
