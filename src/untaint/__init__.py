"""untaint finds the poisoned examples in an image training set and trains models that do without them."""
