"""One file per host program; nothing here is imported by the rest of the package."""
