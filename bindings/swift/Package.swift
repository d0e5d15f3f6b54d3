// swift-tools-version:5.9
// On macOS the native core comes as build/apple/SolRt.xcframework, which bindings/apple/build-xcframework.sh makes. Elsewhere libsol_rt is linked:
//   swift build -Xlinker -LFOLDER_OF_LIBSOL_RT
import PackageDescription

#if os(macOS)
let core = Target.binaryTarget(name: "CSolRt", path: "../../build/apple/SolRt.xcframework")
let linked: [LinkerSetting] = [.linkedLibrary("c++")]
#else
let core = Target.systemLibrary(name: "CSolRt")
let linked: [LinkerSetting] = []
#endif

let package = Package(
  name: "SolRt",
  platforms: [.iOS(.v15), .macOS(.v12)],
  products: [.library(name: "SolRt", targets: ["SolRt"])],
  targets: [
    core,
    .target(name: "SolRt", dependencies: ["CSolRt"], linkerSettings: linked),
    .executableTarget(name: "Sample", dependencies: ["SolRt"]),
    .testTarget(name: "SolRtTests", dependencies: ["SolRt"]),
  ]
)
