# How to install polyak for each framework; the pages show these lines. ./polyak is a clone or an unpacked archive:
# when polyak is published, "./polyak[...]" becomes "polyak[...]" here and in the two READMEs.

# --8<-- [start:torch]
pip install "./polyak[torch]"
# --8<-- [end:torch]

# --8<-- [start:paddle]
pip install "./polyak[paddle]"
# --8<-- [end:paddle]

# --8<-- [start:lightning]
pip install "./polyak[lightning]"
# --8<-- [end:lightning]

# --8<-- [start:transformers]
pip install "./polyak[transformers]"
# --8<-- [end:transformers]

# --8<-- [start:accelerate]
pip install "./polyak[accelerate]"
# --8<-- [end:accelerate]

# --8<-- [start:ultralytics]
pip install "./polyak[ultralytics]"
# --8<-- [end:ultralytics]

# --8<-- [start:ignite]
pip install "./polyak[ignite]"
# --8<-- [end:ignite]

# --8<-- [start:keras]
pip install "./polyak[keras]"
# --8<-- [end:keras]

# --8<-- [start:server]
pip install "./polyak[torch,server]"
# --8<-- [end:server]

# --8<-- [start:peers]
pip install ./polyak --group ./polyak/pyproject.toml:peers
# --8<-- [end:peers]
