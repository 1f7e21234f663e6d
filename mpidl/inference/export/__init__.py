"""Trained models as files for other programs: the suffix chooses the format."""

from mpidl.inference.export.formats import EXPORTERS, Exporter, choose_exporter

__all__ = ["EXPORTERS", "Exporter", "choose_exporter"]
