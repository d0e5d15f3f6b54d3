#!/bin/sh
# Builds and tests the Java and Kotlin bindings on a desktop JVM. Needs Debian's JDK, and npm's `kotlin-compiler` for the Kotlin part.
set -eu
# shellcheck source=bindings/test-lib.sh
. "$(dirname "$0")/../test-lib.sh"
java=$bindings/java
out=$root/build/bindings/java
kotlin_version=2.4.20

install javac default-jdk-headless || skip "no JDK can be had"
test_inputs
mkdir -p "$out"
"$java/build-jni.sh" "$SOL_TEST_LIBRARY" "$out"
rm -rf "$out/classes" "$out/tests"
javac --release 8 -Xlint:all,-options,-serial -Werror -d "$out/classes" "$java"/src/main/java/ai/solrt/*.java
javac --release 8 -Xlint:-options -cp "$out/classes" -d "$out/tests" "$java"/src/test/java/ai/solrt/*.java "$java"/example/*.java

# Runs a main class; what -Xcheck:jni finds wrong is a failure.
run() {
  class_path=$1
  shift
  on_full_disk java -Xcheck:jni -Dai.solrt.library="$jni/libsol_rt_jni.so" -cp "$class_path" "$@" >"$out/log" 2>&1 || { cat "$out/log"; exit 1; }
  cat "$out/log"
  if grep -q "in native method" "$out/log"; then exit 1; fi
}
jni=$out
echo "Java"
run "$out/classes:$out/tests" ai.solrt.SolTests

kotlin=$out/npm/node_modules/kotlin-compiler/lib
if [ ! -e "$kotlin/kotlin-compiler.jar" ]; then
  install npm npm || skip "the Kotlin part: no npm"
  npm install --silent --no-audit --no-fund --prefix "$out/npm" kotlin-compiler@$kotlin_version >/dev/null || skip "the Kotlin part: no kotlin-compiler"
fi
libraries=$kotlin/kotlin-stdlib.jar:$kotlin/kotlinx-coroutines-core-jvm.jar
kotlinc() {
  java -cp "$kotlin/*" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler -no-stdlib -no-reflect -jvm-target 1.8 -Werror "$@"
}
kotlinc -cp "$out/classes:$libraries" -d "$out/classes" "$java/src/main/kotlin"
kotlinc -cp "$out/classes:$out/tests:$libraries" -d "$out/tests" "$java/src/test/kotlin"
echo "Kotlin, from an AAR"
abi=$(uname -m)
mkdir -p "$out/jniLibs/$abi"
cp "$out/libsol_rt.so" "$out/libsol_rt_jni.so" "$out/jniLibs/$abi/"
"$bindings/android/pack-aar.sh" -o "$out/solrt.aar" -c "$out/classes" "$out/jniLibs" >/dev/null
rm -rf "$out/aar"
mkdir "$out/aar"
(cd "$out/aar" && jar --extract --file ../solrt.aar)
[ -s "$out/aar/AndroidManifest.xml" ] && [ -s "$out/aar/proguard.txt" ] && [ -e "$out/aar/R.txt" ]
jni=$out/aar/jni/$abi
run "$out/aar/classes.jar:$out/tests:$libraries" ai.solrt.FlowTestsKt
