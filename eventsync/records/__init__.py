"""Record types: fields, keys, coercion, filters, queries and views."""
