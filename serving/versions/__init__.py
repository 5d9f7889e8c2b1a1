"""Which version of a policy a replica serves: what is checked before, and how it is changed."""
