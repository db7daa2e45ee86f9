"""From two label volumes to numbers: the request, tables, one file for each family of metrics, the report."""
