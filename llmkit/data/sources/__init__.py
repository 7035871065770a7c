"""Where documents come from. A reader for each kind of source; `registry.open_reader` finds it."""
