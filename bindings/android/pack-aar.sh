#!/bin/sh
# Packs an AAR without Gradle:   bindings/android/pack-aar.sh -o solrt.aar -c CLASSES_FOLDER JNILIBS_FOLDER
# CLASSES_FOLDER has the compiled classes of bindings/java (Java 8), JNILIBS_FOLDER one folder for each ABI, as build-native.sh writes them.
set -eu
usage() {
  echo "usage: $0 -o FILE.aar -c CLASSES_FOLDER JNILIBS_FOLDER" >&2
  exit 2
}
out='' classes=''
while getopts o:c: option; do
  case $option in
    o) out=$OPTARG ;;
    c) classes=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
if [ $# -ne 1 ] || [ -z "$out" ] || [ -z "$classes" ]; then usage; fi
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/jni"
for folder in "$1"/*/; do
  abi=$(basename "$folder")
  for library in libsol_rt.so libsol_rt_jni.so; do
    if [ ! -e "$folder$library" ]; then
      echo "error: $folder$library: no such file; build-native.sh makes it" >&2
      exit 1
    fi
  done
  mkdir "$work/jni/$abi"
  cp "$folder"libsol_rt.so "$folder"libsol_rt_jni.so "$work/jni/$abi/"
done
cp "$here/library/AndroidManifest.xml" "$work/"
cp "$here/library/consumer-rules.pro" "$work/proguard.txt"
: >"$work/R.txt"
jar --create --no-manifest --date=1980-01-01T00:00:02Z --file "$work/classes.jar" -C "$classes" .
mkdir -p "$(dirname "$out")"
rm -f "$out"
(cd "$work" && jar --create --no-manifest --date=1980-01-01T00:00:02Z --file out.aar AndroidManifest.xml R.txt proguard.txt classes.jar jni)
mv "$work/out.aar" "$out"
echo "$out"
