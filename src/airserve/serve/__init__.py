"""A Model as a service: light enough for a device."""
