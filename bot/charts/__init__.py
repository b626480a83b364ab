"""Pictures for /stats and /status: drawn with Pillow, off the event loop, with their words as alt text.

A picture is a card with a ground of its own, so that it reads the same on Discord's dark and light themes.
Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), and whatever a colour says is said by a form,
a place or a word as well. Only counts are drawn: never who rated what.
"""
