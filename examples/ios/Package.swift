// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "planish-ios",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "PlanishModel", targets: ["PlanishModel"]),
        .executable(name: "planish-demo", targets: ["planish-demo"]),
    ],
    dependencies: [
        .package(url: "https://github.com/huggingface/swift-transformers.git", from: "1.0.0")
    ],
    targets: [
        .target(
            name: "PlanishModel",
            dependencies: [.product(name: "Transformers", package: "swift-transformers")]
        ),
        .executableTarget(name: "planish-demo", dependencies: ["PlanishModel"]),
    ],
    swiftLanguageModes: [.v5]
)
