"""The lake: what is kept. Table contracts, the SQL that derives one table from another, and how to read it."""
