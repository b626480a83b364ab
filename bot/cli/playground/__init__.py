"""The playground from the command line: the sample community and rehearsals."""
