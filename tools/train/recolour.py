"""Pictures in other colours than the font's ("blue cat face"), and the subject/colour pairs that no training may show.

The dominant hue of a picture is moved to a named colour; shading stays, other hues (eyes, leaves, outlines) stay. Pictures without
a clear dominant hue are left out."""
import re
import numpy as np
from common import COLORS, NAMES

TO = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "black")
WORDS = r"\b(red|orange|yellow|green|teal|blue|purple|pink|black|white|gray|brown)\b"
# never trained: a subject on a background, a subject in a colour
HELD_BACK = [("red apple", "teal"), ("pizza", "purple"), ("fox", "pink"), ("rocket", "orange"), ("grinning face", "blue"), ("owl", "green"), ("strawberry", "gray"), ("cactus", "yellow"), ("soccer ball", "red"), ("crown", "black")]
HELD_TINT = [("cat face", "blue"), ("red apple", "purple"), ("frog", "pink"), ("automobile", "green"), ("snail", "red"), ("pear", "orange"), ("tropical fish", "purple"), ("rose", "blue"), ("basketball", "green"), ("balloon", "teal")]


def hsv(x):
    """[...,3] in 0..1 -> hue in 0..1, saturation, value"""
    mx, mn = x.max(-1), x.min(-1); d = np.maximum(mx - mn, 1e-6); r, g, b = x[..., 0], x[..., 1], x[..., 2]
    h = np.where(mx == r, (g - b) / d % 6, np.where(mx == g, (b - r) / d + 2, (r - g) / d + 4)) / 6
    return h, np.where(mx > 1e-6, (mx - mn) / np.maximum(mx, 1e-6), 0), mx


def dominant(pre, alpha):
    """-> weight of every pixel in the dominant hue [H,W], its share of the picture, its mean luminance"""
    a = alpha[..., 0]; rgb = pre / np.maximum(alpha, 1e-3); h, s, v = hsv(rgb)
    w = a * np.clip((s - .2) / .2, 0, 1) * np.clip(v * 4 - .4, 0, 1)
    hist, _ = np.histogram(h, 36, (0, 1), weights=w); hist = hist + np.roll(hist, 1) + np.roll(hist, -1)
    peak = (hist.argmax() + .5) / 36; far = np.abs((h - peak + .5) % 1 - .5)
    m = np.clip((s - .2) / .2, 0, 1) * np.clip(v * 4 - .4, 0, 1) * np.clip((.16 - far) / .05, 0, 1)
    lum = rgb @ np.float32([.3, .59, .11]); share = (m * a).sum() / max(a.sum(), 1)
    return m, share, (lum * m * a).sum() / max((m * a).sum(), 1e-3)


def tint(pre, alpha, colour):
    """premultiplied picture [H,W,3] with its dominant hue turned to `colour`; None if it has none or has that colour already"""
    m, share, mean = dominant(pre, alpha)
    if share < .45: return None
    rgb = pre / np.maximum(alpha, 1e-3); lum = rgb @ np.float32([.3, .59, .11]); c = np.float32(COLORS[colour]) / 255
    k = (lum / max(mean, .05))[..., None]
    dark, light = c * np.minimum(k, 1), 1 - (1 - c) * np.clip(1 - (k - 1) * .6, 0, 1)
    new = np.where(k < 1, dark, light); out = rgb + m[..., None] * (new - rgb)
    if np.abs((out - rgb) * alpha).sum() / (alpha.sum() * 3) < .08: return None
    return (np.clip(out, 0, 1) * alpha).astype(np.float32)


def tinted_name(name, colour, names):
    """"red apple", blue -> "blue apple"; None where that is an emoji of its own"""
    s = colour + " " + " ".join(re.sub(WORDS, "", name).split())
    return None if s in names or re.search(WORDS, re.sub(WORDS, "", s)) else s
