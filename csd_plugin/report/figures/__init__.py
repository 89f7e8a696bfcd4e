"""Pictures for papers: crops, error maps, slices through time, feature maps and videos that compare methods.

`sources` says what is compared, `sheet` is the paper they are drawn on; every other module draws one kind of picture.
"""
