"""Models by name, with a stem for small images, and the small proxy."""
