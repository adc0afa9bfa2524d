"""Plain words, most of them one token to most tokenizers: what lists are made of."""

TEXT = """
    apple arm baby ball bank bed bell bird boat body book bottle bowl box bread bridge brother brush bus butter
    cake camera card cat chair cheese child church city clock cloud coat coffee corn cow cup desk dog door dress
    duck ear egg engine eye face farm field finger fire fish flag floor flower foot forest game garden gate girl
    glass gold grass hair hand hat head heart hill horse house ice island jacket key king kitchen knife lake
    lamp leaf letter library lion map market milk mirror money moon mountain mouse mouth nail neck needle night
    ocean onion orange page paper park pen phone piano picture plane plant plate pocket queen rain ring river
    road rock roof room salt sand school sea ship shirt shoe shop snow soap sock song spoon square star station
    stone street sugar sun table tail tea tiger tooth tower town train tree uncle valley village voice wall
    water wheel wind window wing winter wolf wood
"""
WORDS = tuple(TEXT.split())
