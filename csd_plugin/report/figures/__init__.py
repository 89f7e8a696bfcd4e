"""Pictures for papers: crops, error maps, slices through time, feature maps and videos that compare methods.

`sources` defines what is compared, `sheet` lays out the page; every other module draws one kind of picture.
"""
