"""The model server's HTTP side: routes, authorisation and responses."""
