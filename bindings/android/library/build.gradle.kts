plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

val sources = rootDir.resolve("../java")

android {
    namespace = "ai.solrt"
    compileSdk = 34
    defaultConfig {
        minSdk = 26
        consumerProguardFiles("consumer-rules.pro")
    }
    sourceSets["main"].apply {
        java.srcDir(sources.resolve("src/main/java"))
        kotlin.srcDir(sources.resolve("src/main/kotlin"))
        jniLibs.srcDir(rootDir.resolve("../../build/android/jniLibs"))
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
    kotlinOptions { jvmTarget = "1.8" }
}

dependencies {
    api("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.8.1")
    // libonnxruntime.so. An app that has ONNX Runtime already, of 1.23 or newer, keeps its own.
    api("com.microsoft.onnxruntime:onnxruntime-android:1.23.0")
}
