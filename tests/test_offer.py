"""What a build offers: where its files would be published, and what has to be staged for that."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.archive_url import BuildName
from artifacts.catalog import Catalog
from artifacts.commands.sample_build import (
    BUILD,
    FULL_PAYLOAD,
    N_TO_N_PAYLOAD,
    TARGET,
)
from artifacts.manifest import Item
from artifacts.offer import Offer
from artifacts.sources.source import ArchiveFile

NAME = BuildName(TARGET, BUILD)
NAMES = [
    FULL_PAYLOAD,
    N_TO_N_PAYLOAD,
    "stateful.tgz",
    "autotest.tar.bz2",
    "chromiumos_test_image.tar.xz",
    "image.zip",
    "debug.tgz",
    "full_dev_part_KERN.bin.gz",
    "full_dev_part_ROOT.bin.gz",
    "deep/down.txt",
]


def offer_of(catalog: str, names: list[str]) -> Offer:
    return Offer({name: ArchiveFile(name) for name in names}, Catalog.load(catalog), NAME)


def ways(offer: Offer, path: str) -> list[tuple[list[str], str | None]]:
    return [
        ([item.name for item in way.items], way.file and way.file.name) for way in offer.find(path)
    ]


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("update.gz", (["full_payload"], FULL_PAYLOAD)),
        (f"au/{BUILD}_nton/update.gz", (["nton_payload"], N_TO_N_PAYLOAD)),
        (f"au/{BUILD}_nton/stateful.tgz", (["nton_payload", "stateful"], "stateful.tgz")),
        ("stateful.tgz", (["stateful"], "stateful.tgz")),
        ("full_dev_part_KERN.bin.gz", (["full_dev_part_KERN.bin.gz"], "full_dev_part_KERN.bin.gz")),
        ("chromiumos_test_image.bin", (["test_image"], None)),
        ("debug/breakpad/x/y.sym", (["symbols"], None)),
        ("image.zip", (["image.zip"], "image.zip")),
        ("deep/down.txt", (["deep/down.txt"], "deep/down.txt")),
        (FULL_PAYLOAD, ([FULL_PAYLOAD], FULL_PAYLOAD)),
    ],
)
def test_a_path_leads_to_what_has_to_be_staged(
    path: str, first: tuple[list[str], str | None]
) -> None:
    assert ways(offer_of("chromeos", NAMES), path)[0] == first


@pytest.mark.parametrize("path", ["nothing", "autotest/x", "deep", f"au/{BUILD}_mton/update.gz"])
def test_a_path_may_lead_nowhere(path: str) -> None:
    assert ways(offer_of("chromeos", NAMES), path) == []


def test_of_everything_only_the_one_file_is_staged() -> None:
    offer = offer_of("everything", NAMES)
    assert offer.find("stateful.tgz")[0].items == (Item.files("stateful.tgz"),)


def test_what_is_ambiguous_is_passed_over_and_has_its_own_names_still() -> None:
    names = ["chromeos_1_full_a.bin", "chromeos_1_full_b.bin"]
    offer = offer_of("chromeos", names)
    assert ways(offer, "update.gz") == []
    assert ways(offer, names[0]) == [([names[0]], names[0])]


def test_links_that_lead_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text('[artifacts.a]\nfiles = ["a"]\nlinks = { "x" = "y", "y" = "x" }\n')
    assert ways(offer_of(str(catalog), ["a"]), "x") == []
