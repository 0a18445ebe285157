"""A page in the browser: teach a model classes with a few pictures, classify others, download the classifier."""
