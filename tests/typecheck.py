"""The checker of types that the tests put on the package: as beartype's own, with an int where a float is asked."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
