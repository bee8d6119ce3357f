"""The engine: stores and accessors, and how they apply, edit, capture and synchronize records."""
