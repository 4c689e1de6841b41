"""The receiver's rules, free of I/O: what a submission becomes, given what is stored. Imports `pisync_common` alone."""
