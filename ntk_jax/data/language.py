"""Which language a text is in, by resiliparse's profiles of 101 languages."""

from __future__ import annotations

from ntk_jax.errors import UserError

UNKNOWN = "unknown"
_LOOKED_AT = 5000  # characters; more changes little and takes time
_CUTOFF = 1200  # of the detector's rank: values above are usually wrong


def language_of(text: str) -> str:
    """The ISO 639-1 code of the text's language, `unknown` where no profile is near. Short texts are often wrong.

    Raises UserError: resiliparse is not installed.
    """
    try:
        from resiliparse.parse.lang import detect_fast
    except ImportError:
        raise UserError("languages need the extra crawl; install it: pip install 'ntk_jax[crawl]'") from None
    return detect_fast(text[:_LOOKED_AT], _CUTOFF)[0]
