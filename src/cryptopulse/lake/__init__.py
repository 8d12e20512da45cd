"""The lake: table contracts, the SQL that derives one table from another, and reading."""
