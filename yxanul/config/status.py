"""What a process ends with. Imports nothing: the first lines of a program need it."""

EXIT_USAGE = 2  # the user's mistake, or a fault of the machine that left nothing to go on with; one line says which
EXIT_UNSAVED = 74  # EX_IOERR: trained to the end, but not all of it could be written
EXIT_AGAIN = 75  # EX_TEMPFAIL: stopped on request; the same command goes on
