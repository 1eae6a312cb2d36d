"""Better samples from an untouched model: choose among what it might make, by any reward."""
