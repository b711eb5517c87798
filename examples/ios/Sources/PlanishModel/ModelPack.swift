import Foundation
import System

#if canImport(BackgroundAssets)
    import BackgroundAssets

    /// A bundle that arrives as a managed asset pack (README.md tells how it is made).
    @available(iOS 26.0, macOS 26.0, *)
    public enum ModelPack {
        /// The bundle's folder on this device, after its pack was downloaded if it had to be.
        ///
        /// - Parameters:
        ///   - identifier: `assetPackID` of the pack's manifest.
        ///   - folder: name of the bundle's folder inside the pack.
        public static func bundle(_ identifier: String, folder: String) async throws -> BundleFolder {
            let pack = try await AssetPackManager.shared.assetPack(withID: identifier)
            try await AssetPackManager.shared.ensureLocalAvailability(of: pack)
            let manifest = try AssetPackManager.shared.url(for: FilePath("\(folder)/manifest.json"))
            return try BundleFolder(manifest.deletingLastPathComponent())
        }
    }
#endif
