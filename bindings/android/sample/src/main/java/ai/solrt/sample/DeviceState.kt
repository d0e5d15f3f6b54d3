package ai.solrt.sample

import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager

/** Readings of the device for the governor. */
class DeviceState(private val context: Context) {
    private val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager
    private val battery: Intent?
        get() = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))

    /** Level, 0 to 1; NaN if unknown. */
    val level: Double
        get() {
            val state = battery ?: return Double.NaN
            val level = state.getIntExtra(BatteryManager.EXTRA_LEVEL, -1)
            val scale = state.getIntExtra(BatteryManager.EXTRA_SCALE, -1)
            return if (level >= 0 && scale > 0) level.toDouble() / scale else Double.NaN
        }

    /** Null if unknown. */
    val charging: Boolean?
        get() = battery?.let { it.getIntExtra(BatteryManager.EXTRA_PLUGGED, 0) != 0 }

    /** Android's thermal headroom in 10 seconds: at 1 the system begins to throttle. NaN before Android 11, and where it is asked more than once a second. */
    val thermal: Double
        get() = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) power.getThermalHeadroom(10).toDouble() else Double.NaN
}
