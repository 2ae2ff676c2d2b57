"""Kernels beside their peers and their floor: `cases` says what is compared, `measure` how it is timed."""
