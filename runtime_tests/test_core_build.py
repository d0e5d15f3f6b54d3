"""Which failures of CMake leave the native core's tests out: those of machines that lack something, and no others."""

from __future__ import annotations

import pytest

from helpers.core_build import missing


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        (
            "CMake Error at cmake/dependencies.cmake:13 (message):\n"
            "  ONNX Runtime's header (onnxruntime_c_api.h) was not found; run `python\n"
            "  scripts/fetch_headers.py`\n",
            "ONNX Runtime's header (onnxruntime_c_api.h) was not found; run `python scripts/fetch_headers.py`",
        ),
        (
            "CMake Error at FindPackageHandleStandardArgs.cmake:233 (message):\n"
            "  Could NOT find Threads (missing: Threads_FOUND)\n",
            "Could NOT find Threads",
        ),
        (
            "  Each download failed!\n\n    error: downloading 'https://github.com/json.tar.xz' failed\n"
            '          status_code: 7\n          status_string: "Could not connect to server"\n',
            "Could not connect to server",
        ),
        ('CMake Error: CMake was unable to find a build program corresponding to\n"Unix Makefiles".\n', "Makefiles"),
    ],
)
def test_what_is_missing_leaves_tests_out(errors: str, said: str) -> None:
    assert said in missing("CMake Warning: a policy is old\n" * 40 + errors)


@pytest.mark.parametrize(
    "errors",
    [
        "",
        'CMake Error at CMakeLists.txt:51 (includ):\n  Unknown CMake command "includ".\n',
        "CMake Error at CMakeLists.txt:51 (include):\n  include could not find requested file:\n\n    cmake/no.cmake\n",
        "CMake Error at CMakeLists.txt:65 (add_library):\n  Cannot find source file:\n\n    src/no.cc\n",
        "CMake Error at cmake/merge.cmake:4 (message):\n  ar -M: failed\n",
    ],
)
def test_another_failure_is_one_of_the_tests(errors: str) -> None:
    assert missing(errors) == ""
