from .run import ConversionReport, convert

__all__ = [
    "ConversionReport",
    "convert",
]
