"""What every output says of itself: that a machine made it, in its metadata and in its pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imprint.errors import SampleError
from imprint.serve.settings import ProvenanceSpec
from imprint.serve.watermark import Mark, detect, mark

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for what a trained model made; other programs look for it in XMP."""

_XMP_KEY = "XML:com.adobe.xmp"
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:xmp="http://ns.adobe.com/xap/1.0/" Iptc4xmpExt:DigitalSourceType="{source}" '
    'xmp:CreatorTool="imprint {version}"/></rdf:RDF></x:xmpmeta>'
)


def finish(picture: Image.Image, spec: ProvenanceSpec) -> bytes:
    """The picture as a PNG with its marks. It says how it was made, and not by whom or of what words."""
    if spec.watermark:
        picture = Image.fromarray(mark(np.asarray(picture.convert("RGB")), spec.watermark_key))
    info = PngInfo()
    if spec.metadata:
        info.add_itxt(_XMP_KEY, _XMP.format(source=SOURCE_TYPE, version=version("imprint")))
        info.add_text("Software", f"imprint {version('imprint')}")
    out = io.BytesIO()
    picture.save(out, "PNG", pnginfo=info)
    return out.getvalue()


@dataclass(frozen=True)
class Origin:
    """What a picture says of its origin."""

    metadata: bool
    watermark: Mark

    @property
    def is_marked(self) -> bool:
        return self.metadata or self.watermark.found


def verify(file: Path, key: str = ProvenanceSpec().watermark_key) -> Origin:
    """Look for both marks in a picture.

    Raises:
        SampleError: it cannot be read.
    """
    try:
        with Image.open(file) as picture:
            picture.load()
            xmp = str(picture.info.get(_XMP_KEY, "")) + str(picture.info.get("xmp", ""))
            pixels = np.asarray(picture.convert("RGB"))
    except Exception as error:
        raise SampleError(f"reading {file}: it is no picture, or cut or damaged ({type(error).__name__})") from error
    return Origin(SOURCE_TYPE in xmp, detect(pixels, key))
