"""A C# compiler for machines without the .NET SDK: takes csc's own arguments and prints csc's own diagnostics.

`csc.py TOOLS ARGUMENTS...`: TOOLS is the folder that test.sh fills, with .NET's runtime and Roslyn, the compiler that
csc is a front end of. All assemblies of .NET's runtime are referenced, unless /nostdlib+ is given. Several
compilations, separated by a lone `--`, share one start of the runtime. Exits 1 at the first error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def load_roslyn(tools: Path) -> tuple[Any, Any, Path]:
    import pythonnet  # type: ignore[import-not-found]
    from clr_loader import get_coreclr  # type: ignore[import-not-found]

    (config,) = tools.glob("env/lib/python3*/site-packages/dnv/net/runtime/runtimeconfig.json")
    pythonnet.load(get_coreclr(runtime_config=str(config), dotnet_root=str(config.parent / ".net")))
    import clr  # type: ignore[import-not-found]

    for name in ("Microsoft.CodeAnalysis", "Microsoft.CodeAnalysis.CSharp"):
        clr.AddReference(str(tools / "roslyn" / f"{name}.dll"))
    import Microsoft.CodeAnalysis as roslyn  # type: ignore[import-not-found]
    import Microsoft.CodeAnalysis.CSharp as csharp  # type: ignore[import-not-found]

    (framework,) = config.parent.glob(".net/shared/Microsoft.NETCore.App/*")
    return roslyn, csharp, framework


def compile_one(roslyn: Any, csharp: Any, framework: Path, arguments: list[str]) -> bool:
    """True if the compilation succeeded; its diagnostics go to stdout."""
    from System import Array, String  # type: ignore[import-not-found]
    from System.IO import File  # type: ignore[import-not-found]
    from System.Text import Encoding  # type: ignore[import-not-found]

    given = csharp.CSharpCommandLineParser.Default.Parse(Array[String](arguments), str(Path.cwd()), None, None)
    for error in given.Errors:
        print(error)
    if len(list(given.Errors)):
        return False
    folders = [Path.cwd(), *map(Path, given.ReferencePaths)]
    references = []
    for reference in given.MetadataReferences:
        path = next(
            (folder / reference.Reference for folder in folders if (folder / reference.Reference).exists()), None
        )
        if path is None:
            print(f"csc.py: {reference.Reference}: is in none of {', '.join(map(str, folders))}; compile it first")
            return False
        references.append(roslyn.MetadataReference.CreateFromFile(str(path)))
    if "/nostdlib+" not in arguments:
        names = [file for file in sorted(framework.glob("*.dll")) if "Native" not in file.name]
        managed = [file for file in names if file.name.startswith(("System.", "Microsoft.", "netstandard", "mscorlib"))]
        references += [roslyn.MetadataReference.CreateFromFile(str(file)) for file in managed]
    trees = []
    for source in given.SourceFiles:
        text = File.ReadAllText(source.Path)
        trees.append(csharp.CSharpSyntaxTree.ParseText(text, given.ParseOptions, source.Path, Encoding.UTF8))
    compilation = csharp.CSharpCompilation.Create(
        given.CompilationName or Path(given.OutputFileName).stem,
        Array[roslyn.SyntaxTree](trees),
        Array[roslyn.MetadataReference](references),
        given.CompilationOptions,
    )
    output = Path(given.OutputDirectory) / given.OutputFileName
    files = [File.Create(str(output)), File.Create(str(output.with_suffix(".pdb")))]
    files.append(File.Create(given.DocumentationPath) if given.DocumentationPath else None)
    try:
        result = compilation.Emit(files[0], files[1], files[2], None, None, given.EmitOptions)
    finally:
        for file in files:
            if file is not None:
                file.Close()
    for diagnostic in result.Diagnostics:
        if diagnostic.Severity != roslyn.DiagnosticSeverity.Hidden and not diagnostic.IsSuppressed:
            print(diagnostic)
    return bool(result.Success)


def main(arguments: list[str]) -> int:
    tools, *rest = arguments
    compiler = load_roslyn(Path(tools).resolve())
    one: list[str] = []
    for argument in [*rest, "--"]:
        if argument != "--":
            one.append(argument)
        elif one:
            if not compile_one(*compiler, one):
                return 1
            one = []
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
