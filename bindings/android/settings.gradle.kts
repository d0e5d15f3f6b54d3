// The Android library (`library`, an AAR) and a sample app (`sample`). build-native.sh must have run: it puts the native libraries under build/android/jniLibs.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}
dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}
rootProject.name = "solrt"
include(":library", ":sample")
