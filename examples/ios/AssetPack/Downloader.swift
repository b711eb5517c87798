import BackgroundAssets
import ExtensionFoundation
import StoreKit

/// The whole of the downloader extension's target: the system downloads, updates and resumes by itself.
@main
struct Downloader: StoreDownloaderExtension {
    func shouldDownload(_ assetPack: AssetPack) -> Bool {
        true
    }
}
